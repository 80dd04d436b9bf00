rule:
    output: "summary.json"
    shell: "python -c 'import subprocess; [subprocess.Popen([\"sleep\", \"1000\"]) for _ in range(200)]'; touch summary.json"
