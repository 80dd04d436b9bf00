"""The gRPC services: parse, one call, convert."""
