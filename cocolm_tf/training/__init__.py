"""From a configuration to a trained preset."""
