"""The Open Inference Protocol over gRPC; `scorer.grpc.server` is where it begins."""
