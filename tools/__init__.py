"""What a developer runs: tiny worlds and their training, bench, demo, evaluation and the test server. Not shipped."""
