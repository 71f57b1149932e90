"""From what a platform sends to behaviors of users."""
