"""What all service processes share; imports no service."""
