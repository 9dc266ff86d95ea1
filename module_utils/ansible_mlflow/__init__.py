"""What the modules of this project share; importable without Ansible."""
