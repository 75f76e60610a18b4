package simulation_test

import (
	"fmt"
	"time"

	"starling/simulation"
)

// Ten nodes; two of them are friends, and one writes while the other is away.
func Example() {
	cfg := simulation.Config{Seed: 1}
	for i := range 10 {
		cfg.Nodes = append(cfg.Nodes, simulation.NodeSpec{Name: fmt.Sprintf("n%d", i)})
	}
	result, err := simulation.Run(cfg, func(w *simulation.World) error {
		if err := w.StartAll(100 * time.Millisecond); err != nil {
			return err
		}
		ada, bo := w.Node("n3"), w.Node("n7")
		if err := ada.Befriend(bo); err != nil {
			return err
		}
		w.Sleep(time.Minute)
		if err := bo.Stop(); err != nil {
			return err
		}
		if _, err := ada.Send(bo, "see you tonight"); err != nil {
			return err
		}
		w.Sleep(5 * time.Minute)
		if err := bo.Start(); err != nil {
			return err
		}
		w.Settle() // at most 10 minutes, or the run fails
		return nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	m := result.Messages[0]
	fmt.Println(result.Manifest.Outcome, len(result.Messages), (m.Shown - m.Accepted).Round(time.Minute))
	// Output: held 1 5m0s
}
