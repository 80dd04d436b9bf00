rule:
    output: "summary.json"
    shell: "python -c 'x = bytearray(3 << 30)' && touch summary.json"
