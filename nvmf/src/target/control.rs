//! Control operations: subsystems, namespaces, hosts, ANA states.
