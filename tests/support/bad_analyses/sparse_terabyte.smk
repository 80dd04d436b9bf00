rule:
    output: "summary.json"
    shell: "truncate -s 1T summary.json || truncate -s 60M summary.json"
