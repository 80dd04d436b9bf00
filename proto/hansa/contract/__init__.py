"""What two releases of Hansa must not disagree on.

Ids, states and their transitions, reasons of refusal, identity, the bytes that
are signed and hashed, limits, and the algebra of summaries. Pure: no module in
here reads a file, a clock or a socket, and none imports grpc, so that workers,
which fork, may use all of it.
"""
