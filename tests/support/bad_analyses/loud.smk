rule:
    output: "done"
    shell: "echo first words; (yes || true) | head -c 2147483648; echo last words; touch done"
