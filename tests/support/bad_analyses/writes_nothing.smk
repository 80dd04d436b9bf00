rule:
    output: "done"
    shell: "touch done"
