# The network of Dagster and its database. Nothing in it has an address that the internet can reach.

variable "internet" {
  description = "Let Dagster send requests to the internet, through Cloud NAT. The internet cannot reach it in any case. Without it, it reaches Google's services only: it cannot post to a chat, for example."
  type        = bool
  default     = true
}

resource "google_compute_network" "dagster" {
  #checkov:skip=CKV2_GCP_18:A network of your own has no default rules: nothing comes in.
  name                    = "${local.name}-dagster"
  auto_create_subnetworks = false

  depends_on = [google_project_service.api]
}

resource "google_compute_subnetwork" "dagster" {
  #checkov:skip=CKV_GCP_76:The subnetwork has no IPv6 addresses.
  name                     = "${local.name}-dagster"
  network                  = google_compute_network.dagster.id
  region                   = var.region
  ip_cidr_range            = "10.0.0.0/20"
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "EXCLUDE_ALL_METADATA"
  }
}

# The addresses of Google's network that Cloud SQL gets, and the connection to it.
resource "google_compute_global_address" "database" {
  name          = "${local.name}-database"
  network       = google_compute_network.dagster.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
}

resource "google_service_networking_connection" "database" {
  network                 = google_compute_network.dagster.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.database.name]
  update_on_creation_fail = true # Google remembers the connection of a former network of this name
}

resource "google_compute_router" "internet" {
  count = var.internet ? 1 : 0

  name    = "${local.name}-dagster"
  network = google_compute_network.dagster.id
  region  = var.region
}

resource "google_compute_router_nat" "internet" {
  count = var.internet ? 1 : 0

  name                               = "${local.name}-dagster"
  router                             = google_compute_router.internet[0].name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}
