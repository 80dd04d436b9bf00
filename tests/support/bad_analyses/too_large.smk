rule:
    output: "summary.json"
    shell: "head -c 2000000 /dev/zero > summary.json"
