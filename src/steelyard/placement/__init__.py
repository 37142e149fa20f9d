"""Where on hardware does a workload go? Pure: inventories and what runs in, a Plan or a Refusal out. Never moves anything."""
