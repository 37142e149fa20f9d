"""Where on hardware does a workload go? Pure: takes inventories and what runs, returns a Plan or a Refusal. Never moves anything."""
