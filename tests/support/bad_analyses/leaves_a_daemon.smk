from pathlib import Path

import subprocess

subprocess.Popen(["setsid", "sleep", "86400"])
rule:
    output: "done"
    shell: "setsid sleep 86400 & touch done"
