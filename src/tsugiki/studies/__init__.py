"""What runs training and evaluation together: fit, predict, demo."""
