rule:
    output: "summary.json"
    shell: "echo HG00096 > summary.json"
