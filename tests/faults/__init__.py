"""Whatever goes wrong, at whatever time: nothing is lost, and nothing is half done."""
