"""What crosses a boundary between processes: frames, pipe messages, and the codec. Imports nothing of ours."""
