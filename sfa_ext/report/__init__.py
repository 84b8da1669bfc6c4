"""Tables and pictures made from what runs wrote."""
