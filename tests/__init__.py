"""The suite; a package, so that no installed package named tests hides it."""
