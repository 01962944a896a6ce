"""What every test file shares."""

import hypothesis

# A shared machine may stall for a second anywhere; and a failure must be the same one next time.
hypothesis.settings.register_profile("flatbench", deadline=None, derandomize=True)
hypothesis.settings.load_profile("flatbench")
