"""What every process needs: logs, TLS settings, supervision."""
