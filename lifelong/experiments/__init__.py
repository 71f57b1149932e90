"""The papers' tables and figures as commands."""
