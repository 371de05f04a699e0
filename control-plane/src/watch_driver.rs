//! Hands the watch hub's events to the tasks that wait for them.
