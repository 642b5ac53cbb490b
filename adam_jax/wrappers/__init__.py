"""Members of the family that are a change of any other one's update."""
