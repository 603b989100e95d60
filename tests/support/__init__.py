"""What tests share: real servers, gates in this process and in their own, raw clients."""
