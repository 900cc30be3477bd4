"""The list of an owner's runs."""
