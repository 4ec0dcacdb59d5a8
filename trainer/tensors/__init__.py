"""Tensors that no process need hold: made when they are asked for, or shared out over processes; knows no model."""
