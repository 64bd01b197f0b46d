"""Handler modules that misbehave, one fault each. What a supervisor does: ../test_misbehaving_children.py."""
