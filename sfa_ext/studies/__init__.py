"""Studies: many runs that answer one question, from YAML to a table. The package ships some, beside this file."""
