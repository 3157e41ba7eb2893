//! The watch hub: finds the watchers of every event and keeps slow ones from costing memory.
