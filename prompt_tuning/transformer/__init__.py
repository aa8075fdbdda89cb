"""What the families of backbones share: layers, stacks, sites, leaf paths, vocabularies."""
