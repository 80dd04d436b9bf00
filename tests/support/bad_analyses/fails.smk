rule:
    output: "summary.json"
    shell: "echo about to fail; exit 3"
