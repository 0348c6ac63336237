"""Where preferences come from: what people said, and rollouts that a judge compared; checked against labels."""
