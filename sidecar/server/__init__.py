"""What is served: LearnFlow's listener and the ops listener."""
