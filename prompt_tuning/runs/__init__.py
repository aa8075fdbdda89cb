"""What the commands run: train, evaluate, infer; configured by gin, which they never see."""
