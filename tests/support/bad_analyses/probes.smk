# Tries what a sandbox must refuse, from the Snakefile and from a rule.
import subprocess
import sys

if subprocess.run([sys.executable or "python", "/bundle/probes.py", "snakefile"]).returncode:
    raise RuntimeError("the sandbox let something through")


rule:
    output: "done"
    shell: "python /bundle/probes.py rule && touch done"
