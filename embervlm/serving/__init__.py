"""The model at work: the HTTP server with its page, and the tool server for agents. Both answer by `RobotSelector`."""
