"""Embedders: the bundled static table, a contextual MiniLM by ONNX, and any `/v1/embeddings` server."""
