rule:
    output: "done"
    shell: "mkdir summary.json; touch done"
