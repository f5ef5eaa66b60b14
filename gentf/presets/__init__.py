"""Starting points, one YAML file each."""
