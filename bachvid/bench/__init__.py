"""What the method costs at a model's true size."""
