"""What every optimizer in the registry must do, whatever its algorithm."""
