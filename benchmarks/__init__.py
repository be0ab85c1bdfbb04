"""Step time, memory and scaling, side by side with peers. Not in the released archive."""
