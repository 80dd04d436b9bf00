"""Workers, the runner and the sandbox; never imports grpc."""
