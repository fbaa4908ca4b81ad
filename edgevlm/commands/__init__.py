"""One module per verb: the verb is the module, the function and the subcommand."""
