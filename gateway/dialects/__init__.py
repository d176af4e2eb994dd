"""Pure: public wire shapes in and out, one file a dialect. No I/O, no state."""
