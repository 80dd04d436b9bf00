rule:
    output: "summary.json"
    shell:
        """while [ ! -e go ]; do sleep 0.05; done
        echo '{{"v": 1, "axes": {{"variant": []}}, "notes": {{}}, "arrays":
        {{"ac": {{"dtype": "int64", "axes": ["variant"], "merge": "sum", "values": []}}}}}}' > summary.json"""
